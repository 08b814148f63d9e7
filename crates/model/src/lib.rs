//! One config-driven decoder (Llama, Qwen2, Qwen3): forward, backward, generation, optimiser.
