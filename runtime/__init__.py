"""dela.runtime"""
