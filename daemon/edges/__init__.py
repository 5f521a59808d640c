"""The edges: each module owns one outside thing and none imports another."""
