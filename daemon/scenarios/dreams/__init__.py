"""Dreams: scenarios the live policy writes itself. It gives situation and wording; what is judged is given to it."""
