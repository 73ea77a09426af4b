"""What a policy does on groups and prompts it was not trained on."""
