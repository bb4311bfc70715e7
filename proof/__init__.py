"""Proofs of what hectoGPT promises about faults: each counts its tries and its failures. python -m proof NAME"""
