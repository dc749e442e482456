"""Running a model: requests, sampling, generation, and the `Model` that Python users hold."""
