"""Ranks, sharded weights, and packs that ranks share."""
