"""How the work of a build is spread and kept: processes, the store of samples, the ledger of rejects."""
