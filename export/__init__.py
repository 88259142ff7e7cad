"""dela.export"""
