"""Other people's formats: Hugging Face's GPT-2 folders."""
