"""Objects of any class in everyday photographs."""
