"""The process on a node: its place, its card, its end, and the pictures that it makes."""
