-- Enqueue the delayed messages whose time has come.
-- KEYS: delayed
-- ARGV: now, how many at most
-- A member is "<queue key> <message>". Returns how many were enqueued.
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for _, member in ipairs(due) do
  local gap = string.find(member, ' ', 1, true)
  redis.call('LPUSH', string.sub(member, 1, gap - 1), string.sub(member, gap + 1))
  redis.call('ZREM', KEYS[1], member)
end
return #due
