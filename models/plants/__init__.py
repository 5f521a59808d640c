"""Simulated plants whose memory matters, and faults to put into any recording."""
