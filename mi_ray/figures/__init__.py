"""The facts behind every table and figure, and their drawing, from stored rows alone."""
