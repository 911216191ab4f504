"""What lies on storage: safetensors and JSON, written whole or not at all, through pyarrow.fs."""
