"""Pictures for people: contact sheets, the HTML report, its figures, scores."""
