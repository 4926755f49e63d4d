"""From annotations to training targets: weights, reference arms, label noise, rewards."""
