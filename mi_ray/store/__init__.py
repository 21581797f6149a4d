"""What a run leaves on disk: keys, files, locks, schemas, blocks, reading, compaction, checking, and each study's
manifest."""
