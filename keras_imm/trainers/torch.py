"""The train step under PyTorch."""

from typing import Any

import torch


class Trainer:
    """Eager steps; gradients by `torch.autograd.grad`, none stored on the weights."""

    def train_step(self, data: Any) -> dict:
        variables = self.trainable_variables
        weights = [v.value for v in variables]
        steps = self.accumulation_steps
        loss_sum, gradient_sum = 0.0, [None] * len(weights)
        with torch.no_grad():
            particles = self.draw_particles(data, training=True)
        for index in range(steps):
            part = self.micro_batch(particles, index) if steps > 1 else particles
            with torch.no_grad():
                y_target = self.compute_target(part, training=True)
            loss = self.compute_objective(part, y_target, training=True)
            gradients = torch.autograd.grad(
                self.optimizer.scale_loss(loss), weights, allow_unused=True
            )
            loss_sum = loss_sum + loss.detach()
            gradient_sum = [
                b if a is None else a if b is None else a + b
                for a, b in zip(gradient_sum, gradients, strict=True)
            ]
        with torch.no_grad():
            if steps > 1:
                gradient_sum = [g if g is None else g / steps for g in gradient_sum]
            self.optimizer.apply(gradient_sum, variables)
            return self.update_logs(loss_sum / steps)

    def test_step(self, data: Any) -> dict:
        return self.update_logs(self.evaluate_objective(data))
