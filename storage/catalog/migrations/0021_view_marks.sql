-- What the views were made from, which their comments told before.
CREATE TABLE view_marks (
    subject VARCHAR PRIMARY KEY,
    made_from VARCHAR NOT NULL
);
