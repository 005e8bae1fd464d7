"""The science: kernels, process, denoiser, conditioning, objective, samplers. Torch only; no files, no settings."""
