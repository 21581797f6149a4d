"""Computing a block and judging what came out, without Ray."""
