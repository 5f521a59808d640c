"""The demonstration: real telemetry, a simulated pump fleet, and the daemon between them."""
