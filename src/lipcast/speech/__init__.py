"""Speech around the model: text to speech, speech to text, answers of a language model, voice activity."""
