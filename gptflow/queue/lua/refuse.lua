-- Record the end of a job that was never accepted: a message that cannot be read, or a job of a
-- chain that was broken before its turn. A record that exists is left alone: whoever can push a
-- message must not be able to end another's job by it.
--
-- KEYS: the job's key
-- ARGV: prefix, id, task, state, result, seconds to keep it, code
-- Returns 1, or 0 where there is a record already, or the id is not one.
local _, id, task, state, result, ttl, code = unpack(ARGV)
local refused = P .. 'refused'
if code ~= '' then
  tally('refused_messages')
  call('XADD', refused, 'MAXLEN', '~', 1000, '*', 'id', id, 'task', task, 'code', code)
  call('EXPIRE', refused, ttl)
end
if not string.find(id, '^job_[0-9a-f-]+$') or #id < 12 or #id > 68 then return 0 end
if call('EXISTS', KEYS[1]) == 1 then return 0 end
local time = now()
call('HSET', KEYS[1], 'id', id, 'task', task, 'state', state, 'class', 'standard', 'tenant',
  'default', 'submitted', text(time), 'finished', text(time), 'result', result,
  'attempt', 0, 'fence', 0, 'crashes', 0)
call('EXPIRE', KEYS[1], ttl)
call('ZADD', P .. 'jobs', time, id)
call('ZREMRANGEBYRANK', P .. 'jobs', 0, -LISTED - 1)
local stream = P .. 's:' .. id
call('XADD', stream, '*', 'kind', 'end')
call('EXPIRE', stream, ttl)
return 1
