"""Language models that write conversations: over HTTP, or inside this process."""

from medloupe.synthesis.teachers.base import Answer, Failure, Teacher, TeacherConfig

__all__ = ["Answer", "Failure", "Teacher", "TeacherConfig"]
