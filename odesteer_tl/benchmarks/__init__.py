"""The field's benchmarks, for any model, method and judge."""
