"""Definitions worked out the long way, against which fast ones are tested."""

import math

import torch


@torch.no_grad()
def kl(models, row, beta, temperature):
    """Follow a response token by token, one vocabulary entry at a time.

    `models` are base, tuned and untuned; `row` holds the ids of the prompt and of the response.
    """
    total, ids = 0.0, list(row.prompt_ids)
    for token in row.response_ids:
        base, tuned, untuned = (m(input_ids=torch.tensor([ids])).logits[0, -1].double() for m in models)
        ratio = tuned.log_softmax(-1) - untuned.log_softmax(-1)
        p, q = ((base + b * ratio).div(temperature).softmax(-1).tolist() for b in (beta, 0.0))
        total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        ids.append(token)
    return total
