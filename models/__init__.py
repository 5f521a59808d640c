"""Stateful recurrent anomaly detection, one reading at a time. Code only: weights live elsewhere."""

from gruard.models.detector import Detector, DetectorConfig, Score

__all__ = ["Detector", "DetectorConfig", "Score"]
