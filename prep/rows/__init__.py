"""Raw rows out of the files of sources, a chunk at a time: Parquet by polars, Arrow by pyarrow."""
