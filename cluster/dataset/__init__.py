"""The sharded clip dataset: manifest, shards, order of an epoch, loader, verification."""
