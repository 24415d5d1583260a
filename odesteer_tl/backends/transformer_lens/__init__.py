"""TransformerLens: HookedTransformer (3.x) and TransformerBridge (3.x, 4.x)."""
