"""Models on the runtime: the diffusion stream, a scene to steer, and a pass-through to measure."""
