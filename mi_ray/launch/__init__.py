"""Files that start clusters, and what they are held to."""
