"""Training images: read, checked and decoded once, then shuffled, augmented and normalised batch by batch."""

from vitesse.training.data.augment import Augmentation
from vitesse.training.data.opening import open_training
from vitesse.training.data.training_data import TrainingData

__all__ = ["Augmentation", "TrainingData", "open_training"]
