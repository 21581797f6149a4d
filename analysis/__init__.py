"""Scripts that draw tables and figures from a store's Parquet; each computes facts first, then draws them."""
