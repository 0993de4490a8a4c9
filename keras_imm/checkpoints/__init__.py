"""Published weights, mapped to ours."""
