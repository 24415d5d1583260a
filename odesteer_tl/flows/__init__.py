"""Features, barriers, fields and solvers: the flow a(0) → a(T), and what is fitted to make one."""
