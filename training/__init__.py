"""dela.training"""
