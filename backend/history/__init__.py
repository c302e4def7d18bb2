"""Decision records: Redis streams while hot, Parquet when cold."""
