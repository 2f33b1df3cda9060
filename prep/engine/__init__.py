"""How the work of a build is divided and stored: processes, the store of samples, the ledger of rejects."""
