-- Say that what follows a job has been seen to.
--
-- KEYS: the job's key
-- ARGV: prefix, id
-- Returns 1, or 0 where somebody else said so.
local id = ARGV[2]
if call('ZREM', P .. 'outbox', id) == 0 then return 0 end
call('HDEL', KEYS[1], 'next')
local state = call('HGET', KEYS[1], 'state')
if state == 'done' or state == 'cancelled' then call('HDEL', KEYS[1], 'wire') end
return 1
