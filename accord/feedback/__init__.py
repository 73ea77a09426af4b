"""Where judgements come from: verifiers, reward models, LLM judges, people."""
