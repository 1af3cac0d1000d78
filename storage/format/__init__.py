"""The Parquet file of one span: its header, its sections and its plain columns."""
