"""The main job: which model, at which precision, on this machine, for these prompts."""
