"""Data sets larger than memory: shards that are read a row at a time, from a disk or an object store.

A shard is a plain tar file, and beside it a JSON file says at which byte everything in it lies. Tar was
chosen over Parquet and Arrow because a row and an image are each one range read (a Parquet page or an
Arrow batch holds many rows and would be fetched whole), because image files stay as their publisher
wrote them, and because every machine can open it: an unpacked shard is a data set in the native form
with its own card, which `medloupe check` reads.
"""

from medloupe.data.shards.form import ShardIndex, ShardInfo, ShardSet
from medloupe.data.shards.order import ShardOrder
from medloupe.data.shards.read import ShardedDataset

__all__ = ["ShardIndex", "ShardInfo", "ShardOrder", "ShardSet", "ShardedDataset"]
