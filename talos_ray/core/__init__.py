"""The method itself: torch only, no ray. Read fisher, mask, optimizer, finetune, delta, compose, metrics."""
