"""Groups in, groups out, before they become tokens: populations named, goals put into prompts, the best part chosen."""
