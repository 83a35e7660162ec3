-- drop(id...) -> n: what is dead is gone for good.
check_types()
local n = 0
for _, id in ipairs(ARGV) do
  if redis.call('ZREM', DEAD, id) == 1 then
    redis.call('HDEL', MESSAGES, id)
    redis.call('HDEL', HISTORY, id)
    redis.call('HDEL', RECOVERED, id)
    n = n + 1
  end
end
return n
