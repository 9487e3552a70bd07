"""Training: of the teacher on its task, of students by their teacher."""
