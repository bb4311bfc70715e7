"""The assignment as a kit, a folder with stubs, tests and questions; and a student's progress."""
