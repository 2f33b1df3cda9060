"""Packs -> tensors on the device, made in loader processes."""
