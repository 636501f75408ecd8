-- The twin of the PostgreSQL migration of the same number, which argues. Nothing is needed here: the key of
-- `events` is the id and the client alone, so an id that was accepted twice always meets itself.
select 1;
